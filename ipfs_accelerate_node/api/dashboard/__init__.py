"""`/dashboard`: one page that shows the daemon and changes nothing.

`sessions` says who may look, `view` and `results` gather what is shown (bounded), `plots` turns figures into
coordinates, `page` renders it all on the server, `routes` serves it and tells a watching page what changed.
"""
