"""The truth about batches and jobs, in SQL.

`transitions` says which moves are legal, `tables` what is stored, `queries` every statement by name, `messages` the
wire contract of a bell, `database` how PostgreSQL and SQLite are opened, `migration` how a database comes to the newest
schema. Refuses to know any model, store or process.
"""
