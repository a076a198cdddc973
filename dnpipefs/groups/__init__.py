"""Consumer groups: a topic's messages divided among the readers of all hosts, none lost, none skipped."""

from dnpipefs.groups.groups import GroupFacts, Groups
from dnpipefs.groups.member import Delivery, Member

__all__ = ["Delivery", "GroupFacts", "Groups", "Member"]
