"""The demo: `python -m scripts.demo_parts`, started by `scripts/demo`.

command.py    the command line, signals, and the promise that everything is stopped again
signals.py    what stops it early
machine.py    PostgreSQL, Redis and two nodes, in one temporary folder
image.py      a multi-layer, multi-platform OCI image, made here
client.py     a registry client: push, pull and compare, ask which store has a blob
story.py      what is shown, in its order
screen.py     bars and tables on a terminal, plain lines elsewhere
"""
