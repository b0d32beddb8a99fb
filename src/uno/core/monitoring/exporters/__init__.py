"""Who shows the store to other programs: each exporter reads it and touches no resource."""
