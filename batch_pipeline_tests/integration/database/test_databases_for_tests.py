"""Databases for all other tests: many processes begin at the same time and make one template."""

import uuid
from concurrent.futures import ThreadPoolExecutor

import psycopg

from batch_pipeline.testing.databases import DatabaseServer

WORKERS = 6


def test_one_of_many_processes_makes_the_template_and_each_gets_a_database(server_url):
    template = f"template_{uuid.uuid4().hex}"

    def begin(_):
        server = DatabaseServer(server_url, template=template)
        with server.new_database() as url, psycopg.connect(url) as connection:
            return connection.execute("SELECT count(*) FROM upload_batches").fetchone()

    with ThreadPoolExecutor(WORKERS) as workers:
        assert list(workers.map(begin, range(WORKERS))) == [(0,)] * WORKERS
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {template}".encode())
