"""The GPU side: Celery workers that claim units from SQL, run a stage of the model and hand the jobs on.

`app` starts a process, `tasks` is the way of a unit on one screen, `stages` what each stage does, `handoff` what
travels between them, `source` and `results` the picture's two ends, `decoder` the processes that open photos, `ledger`
what is known of them, `heartbeat` the lease. Refuses the control plane:
of ours it imports the model and orchestrator's state, storage and settings only.
"""
