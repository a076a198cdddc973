"""Consumer groups: a topic's messages divided among the readers of all hosts, none lost, none skipped."""

from dnpipefs.groups.delivery import Delivery
from dnpipefs.groups.groups import GroupFacts, Groups, GroupState
from dnpipefs.groups.member import Member
from dnpipefs.groups.records import Redriven

__all__ = ["Delivery", "GroupFacts", "GroupState", "Groups", "Member", "Redriven"]
