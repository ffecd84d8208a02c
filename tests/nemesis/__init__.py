"""What clients see while parts fail: a workload with a recorded history, a nemesis with seeded faults, and a checker.

ground.py     PostgreSQL, Redis, stores, nodes and haproxy, with a proxy that breaks on every edge
images.py     images made from a number, so that a wrong byte is always noticed
client.py     docker's and podman's requests over httpx, with their retries
history.py    what clients did and saw
workload.py   the clients that run at once
crowd.py      a thousand more, in a process of their own
faults.py     the faults by name, and the schedule that a seed stands for
checker.py    pure: what a history may not show
judge.py      pure: what a fault excuses; the line of the table
trial.py      one turn under load, from quiet to converged
real_clients.py  skopeo and podman instead of them
table.py      the table, and the command that prints it: python -m tests.nemesis.table
"""
