"""The evidence wing: every published number beside ours, rerun by one command.

``data`` knows the data sets, ``stats`` the intervals, ``trials`` what a trial, a record and a verdict are
and how trials are run, ``papers`` holds one folder a paper, and ``report`` writes the page. Arrows run from
papers and report down to trials, and from there to data and stats; no method imports the lab.
"""
