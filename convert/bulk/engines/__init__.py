"""Where a run's jobs are done: worker processes on this computer, or a Ray cluster.

An engine is a function of what to do (`convert.bulk.run.Work`) and of the jobs. It yields the outcome of each job when
it is done, in any order. A job may be done twice: the second time finds the agent current. Closing the iterator stops
the work, and leaves no agent's folder half-written.
"""
