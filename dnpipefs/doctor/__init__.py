"""What is wrong with a cluster, in plain words: gather facts, judge them, and repair what is safe.

`facts` are the values, `examination` asks etcd for them, `judgement` makes findings of them (pure), and
`repair` makes room. Works on clusters that no mount could use, so it rests on the etcd client alone, not
on a host's services.
"""

from dnpipefs.doctor.examination import examine
from dnpipefs.doctor.facts import Facts
from dnpipefs.doctor.judgement import Finding, Level, counted, judge
from dnpipefs.doctor.repair import repair

__all__ = ["Facts", "Finding", "Level", "counted", "examine", "judge", "repair"]
