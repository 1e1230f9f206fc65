"""`streamfold materialize`: the messages of sessions as rows in a database of your own, exactly once.

It reads the list of sessions and its live tail, folds what has moved with the fold that every client has, and writes
rows and offset in one transaction. Killed at any moment, it goes on from what the database has: nothing is lost, and
nothing is there twice. What the tables mean is told in docs/materialize.md.

    rows.py            a folded message as a row (pure)
    schema.py          the tables, their migrations, and the statements that write them
    sink.py            the port to a database, and its errors; sqlite.py and postgres.py are behind it
    moves.py           which sessions have moved; queue.py, those that wait
    materializing.py   brings them up to date
    command.py         the command
"""
