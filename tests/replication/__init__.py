"""Tests of replication: policy, debt, locations, risk and audit, on real PostgreSQL and stores."""
