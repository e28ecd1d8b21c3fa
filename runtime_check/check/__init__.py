"""One agent, checked in stages: verify, open, probe, shadow, solo, results. Each passes frozen values to the next.

`pipeline` calls them in order. `folders` and `sources` find what is checked and what it is compared with,
`verification` holds files against their record, `opening` opens backends, `answers` asks them, `probes`, `shadow` and
`solo` let them play, `exhibits` chooses what to show, and `results` is what comes out.
"""
