"""The paper run again: experiments, planning, scheduling, records, statistics and the report."""
