"""The contracts that are generated from the code, for those who work on it: no part of what is installed.

schema/openapi.json    the HTTP API
schema/schema.sql      the database as the migrations leave it
README.md              the table of environment variables
charts/wharfinger/     the README's table of values, and the settings that values.schema.json knows
"""
