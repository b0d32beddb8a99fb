"""What is observed: one clock, one store.

::

     resource --collect--> batch --commit--> Series.value --tick--> history (ring, then file)
                                                 |                     |
     application events --inc/observe/hook------>|                     +--> thresholds --> alerts --> channels
                                                                       +--> anomaly scores --> alerts
     readers: Prometheus text, dashboard stream, health, reports, CLI
              (they read the store and never touch a resource)

A request never touches a resource: it reads the last tick. All series are frozen at the same instant.
What was not read is a gap: never 0, never the old value.

Which file does what, from the outside in: ``resources`` and ``integration`` are what an application imports;
``dashboard`` and ``exporters`` show; ``monitor`` wires; ``discovery``, ``collection``, ``resource_types`` and
``sampler`` find and read resources; ``report`` and ``graph`` sum up; ``alerts``, ``anomaly``, ``health`` and
``history`` judge and remember; ``thresholds``, ``series`` and ``metrics`` hold the numbers. Imports go only
downward in that order.
"""
