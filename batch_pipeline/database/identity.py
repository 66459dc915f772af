"""The identity of this database: it shows which database the files on a storage belong to.

A restored dump or a copied database has the same rows as its original. The identity therefore joins
a number from a table with values that PostgreSQL does not copy into another server or database.
Only a copy of all files of the server has the same identity as its original.
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
    """Return the identity of a migrated database, 32 hexadecimal digits.

    Raises:
        ServiceDownError: the database cannot be reached.
    """
    with database.transaction() as connection:
        here = connection.execute(_HERE).one()
        server = connection.scalar(_SERVER) if here.may_ask else None
    return hashlib.sha256(f"{here.number} {here.oid} {server}".encode()).hexdigest()[:32]
