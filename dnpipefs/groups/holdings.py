"""What a host has claimed of a group, message by message, and where it is on its way to be acknowledged.

A message is *ahead* (claimed before it came), in *stock* (claimed and read), in *hand* (a reader has it), or
*done* or on its way *back*, which the next change puts. No I/O: `Member` says when.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from dnpipefs.core.group import NO_TERM, GivenBack, Piece, Records, Term
from dnpipefs.core.intervals import Stretch
from dnpipefs.core.view import TopicView
from dnpipefs.groups.delivery import Delivery
from dnpipefs.groups.rate import Rate
from dnpipefs.metrics import Deliveries

STOCK_S: Final = 1.0
"""What nobody has taken from the stock for so long goes back to the group."""
AHEAD_S: Final = 0.1
"""Likewise, what was claimed before it came and no reader has waited for."""


class Holdings:
    """All that one member knows to be its own."""

    def __init__(self, counted: Deliveries, now: float) -> None:
        self._counted: Final = counted
        self.taken: Final = Rate(now)
        """How fast readers take messages, since the term began."""
        self.term: Term = NO_TERM
        """Of all of it."""
        self.ahead: dict[int, int] = {}
        """Numbers of what was not there to be read, in order, and how often each was delivered."""
        self.stock: deque[Delivery] = deque()
        self.in_hand: dict[int, Delivery] = {}
        """By number."""
        self.stocked_at = now
        """When something last came into the stock, or was taken from it."""
        self.ahead_wanted_at = now
        """When readers last waited for all that is ahead."""
        self.buried: Final[set[Delivery]] = set()
        """Dead letters on their way; they are in hand."""
        self.done: list[Piece] = []
        self.back: list[GivenBack] = []
        self.lost = 0
        """How many that were done were forgotten before it was so in etcd, as far as this host knows."""

    @property
    def to_settle(self) -> bool:
        """Whether the next change has something to put."""
        return bool(self.done or self.back)

    def pieces(self) -> list[Piece]:
        """Return all of it."""
        return [
            *(Piece(number, number + 1) for number in self.ahead),
            *(delivery.piece for delivery in (*self.stock, *self.in_hand.values())),
            *self.done,
            *(back.piece for back in self.back),
        ]

    def add_ahead(self, claimed: Iterable[Stretch]) -> None:
        """Take in what was claimed before it came."""
        added = {number: times for start, end, times in claimed for number in range(start, end)}
        if added:  # what was returned may be older than what is there
            self.ahead = dict(sorted((self.ahead | added).items()))

    def serves(self, view: TopicView | None) -> bool:
        """Tell whether the stock has a message of the generation that a topic is in."""
        if not self.stock or view is None or view.ended:
            return False
        return view.generation == self.term.generation

    def hand_out(self, now: float) -> Delivery:
        """Move the first message of the stock into a hand."""
        delivery = self.stock.popleft()
        self.stocked_at = now
        self.in_hand[delivery.number] = delivery
        self.taken.count(now)
        self._counted.delivered += 1
        self._counted.again += delivery.deliveries > 0
        return delivery

    def bury(self, delivery: Delivery) -> None:
        """Take in that a message is a dead letter."""
        self.in_hand[delivery.number] = delivery
        self.buried.add(delivery)

    def nothing_to_take(self, now: float) -> None:
        """Take in that a reader has to wait."""
        if not self.in_hand:
            self.taken.pause(now)

    def take_back(self, delivery: Delivery) -> bool:
        """Take a message out of its reader's hand; False if it is not there any more."""
        if self.in_hand.get(delivery.number) is not delivery:
            return False
        del self.in_hand[delivery.number]
        return True

    def acknowledge(self, delivery: Delivery) -> bool:
        """Take a message in hand as done; False if it is not there any more."""
        held = self.take_back(delivery)
        if held:
            self.done.append(delivery.piece)
            self._counted.acknowledged += 1
        return held

    def give_back(self, delivery: Delivery, *, delivered: bool) -> bool:
        """Let a message in hand go back; False if it is not there any more."""
        held = self.take_back(delivery)
        if held:
            self.back.append(GivenBack(delivery.piece, delivered))
            self._counted.given_back += 1
        return held

    def settled(self, done: int, back: int) -> None:
        """Forget the first so many that were done or given back: they are put."""
        del self.done[:done], self.back[:back]

    def expire(self, now: float, *, waiting: int, unwanted: int) -> None:
        """Give back what none of the *waiting* readers has taken for long, and what readers had too long.

        *unwanted*: how many of what is ahead no reader waits for.
        """
        if self.stock and not waiting and now - self.stocked_at >= STOCK_S:
            self.return_stock()
        if not unwanted:
            self.ahead_wanted_at = now
        elif now - self.ahead_wanted_at >= AHEAD_S:
            self.return_ahead(unwanted)
        self.return_late(now)

    def return_late(self, now: float) -> None:
        """Give back what readers have had for too long."""
        for delivery in [late for late in self.in_hand.values() if late.deadline <= now]:
            self.give_back(delivery, delivered=True)

    def return_stock(self) -> None:
        """Give back what no reader has had."""
        self.back += [GivenBack(delivery.piece, delivered=False) for delivery in self.stock]
        self.stock.clear()

    def return_ahead(self, count: int) -> None:
        """Give back the last *count* of what was claimed before it came."""
        for number in list(self.ahead)[len(self.ahead) - count :]:
            del self.ahead[number]
            self.back.append(GivenBack(Piece(number, number + 1), delivered=False))

    def return_all(self) -> None:
        """Give back everything that is not done."""
        self.return_ahead(len(self.ahead))
        self.return_stock()
        self.return_late(float("inf"))

    def drop_void(self, records: Records) -> None:
        """Forget what is not held any more."""
        term, held = records.cursor.term, records.held.stretches
        if term != self.term:
            self.drop_all()
            self.term = term
            # After a rewind a host whose readers have gone would claim the first messages, others later ones.
            self.taken.forget()
        self.ahead = {
            number: times for number, times in self.ahead.items() if held.covers(number, number + 1)
        }
        self.stock = deque(delivery for delivery in self.stock if held.covers(*delivery.piece))
        self.in_hand = {
            number: delivery for number, delivery in self.in_hand.items() if held.covers(*delivery.piece)
        }
        self.done = [piece for piece in self.done if held.covers(*piece)]
        self.back = [back for back in self.back if held.covers(*back.piece)]

    def drop_all(self) -> None:
        """Forget everything."""
        self.lost += len(self.done)
        self.ahead.clear()
        self.stock.clear()
        self.in_hand.clear()
        self.done.clear()
        self.back.clear()
