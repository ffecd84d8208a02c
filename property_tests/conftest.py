"""What simulated ledgers are held to is shared with the real ones, and shows its values when it fails."""

import pytest

pytest.register_assert_rewrite("tests.ledger_contract")
