"""Where a run's work is done: worker processes of this computer, or a Ray cluster.

An engine is a function of what to do (`convert.bulk.run.Work`) and the jobs, which yields an outcome for each as it is
done, in any order. A job may be done twice: the second time finds the agent current. What ends early ends cleanly:
closing the iterator stops the work, and no agent's folder is left half-written.
"""
