import inspect

from dagster._daemon import sensor as daemon_loop

from batch_pipeline.orchestration.sensor_rounds import ROUND_SECONDS, shorten_rounds


def test_the_daemon_sleeps_between_rounds_for_the_time_that_we_set(monkeypatch):
    monkeypatch.setattr(daemon_loop, "MIN_INTERVAL_LOOP_TIME", 5)
    shorten_rounds()
    assert daemon_loop.MIN_INTERVAL_LOOP_TIME == ROUND_SECONDS
    assert "MIN_INTERVAL_LOOP_TIME - loop_duration" in inspect.getsource(
        daemon_loop.execute_sensor_iteration_loop
    )
