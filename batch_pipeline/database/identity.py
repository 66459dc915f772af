"""Which database this is: what is written on a storage must not be taken for another's.

A restored dump and a copied database hold the same rows as the one that they were made of. The
identity therefore joins a number from a table with what PostgreSQL does not copy into another
server or database. Only a copy of the whole server's files has the identity of its original.
"""

import hashlib

from sqlalchemy import text

from batch_pipeline.database.session import Database

_HERE = text("""
    SELECT (SELECT string_agg(id::text, ',' ORDER BY id) FROM database_identity) AS number,
           (SELECT oid FROM pg_database WHERE datname = current_database()) AS oid,
           has_function_privilege('pg_control_system()', 'execute') AS may_ask
""")
_SERVER = text("SELECT system_identifier FROM pg_control_system()")


def database_identity(database: Database) -> str:
    """Tell the identity of a migrated database, 32 hexadecimal digits.

    Raises:
        ServiceDownError: the database cannot be reached.
    """
    with database.transaction() as connection:
        here = connection.execute(_HERE).one()
        server = connection.scalar(_SERVER) if here.may_ask else None
    return hashlib.sha256(f"{here.number} {here.oid} {server}".encode()).hexdigest()[:32]
