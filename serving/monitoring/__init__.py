"""What the server tells its operators: metrics, logs, traces, recorded traffic and a status page.

A request carries a `timeline.Timeline`, which the steps that it goes through fill in. When it has ended,
`ended.Ended` shows it to whoever observes requests: `counts.py` (always; `exposition.py` makes Prometheus'
families of it, `history.py` and `status.py` the page's document), and, where they are asked for, `logs.py`,
`traces.py` and `recording.py`. `routes.py` answers HTTP for all of it.
"""
