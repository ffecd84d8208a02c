"""The table of the API's operations, one room per topic. `operations.py` says what a line is."""

from node.api.operations import Operation
from node.api.table import (
    accounts,
    audit,
    federation,
    first,
    login,
    namespaces,
    permissions,
    placement,
    repositories,
    team_sync,
    webhooks,
)

OPERATIONS: tuple[Operation, ...] = (
    *accounts.OPERATIONS,
    *federation.OPERATIONS,
    *login.OPERATIONS,
    *permissions.OPERATIONS,
    *team_sync.OPERATIONS,
    *repositories.OPERATIONS,
    *namespaces.OPERATIONS,
    *first.OPERATIONS,
    *placement.OPERATIONS,
    *webhooks.OPERATIONS,
    *audit.OPERATIONS,
)
"""All operations, in the order of the document."""
