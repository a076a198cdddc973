"""Counts what a host asks of etcd."""

from __future__ import annotations

from typing import Any

import pytest

from dnpipefs import etcd


class Transactions:
    """How many transactions the clients of this process have sent since it was made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        transaction = etcd.Client.transaction

        async def counted(client: etcd.Client, *args: Any, **kwargs: Any) -> etcd.TransactionResult:
            self.count += 1
            return await transaction(client, *args, **kwargs)

        monkeypatch.setattr(etcd.Client, "transaction", counted)
