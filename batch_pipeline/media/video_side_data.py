"""Side data of a frame: its display matrix, marks of Dolby Vision."""

from typing import Any

from av.sidedata.sidedata import SideDataContainer
from av.video.frame import VideoFrame


def side_data_of(frame: VideoFrame, name: str) -> bytes | None:
    """Read one kind of side data, by FFmpeg's name for it; None if there is none.

    This does not use the property `side_data` of a frame: it and the frame refer to each other, so
    the frame stays in memory until Python looks for cycles. That took 150 MB for each frame of 12K.

    Raises:
        ValueError: the frame also has side data that PyAV does not know.
    """
    container: Any = SideDataContainer  # its type hints do not show that it takes a frame
    found = {each.type.name: each for each in container(frame)}.get(name)
    return None if found is None else bytes(found)
