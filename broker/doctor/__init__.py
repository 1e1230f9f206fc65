"""What `streamfold doctor` does: look at the files of a broker that does not run, and say what is whole.

    finding.py   what was found: where, which entries, which streams
    journal.py   the segments, frame by frame
    store.py     the store, row by row and page by page
    folder.py    a data folder as a whole: what a broker would do with it, and what its operator can do
    salvage.py   a new folder of all that is good
    command.py   the command, and what it prints

Nothing here changes a file that it looks at; the scratch index of SQLite (`store.sqlite-shm`) is SQLite's own.
"""
