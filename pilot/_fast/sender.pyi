from typing_extensions import disjoint_base

from pilot._fast.recovery import Scoreboard

@disjoint_base
class Sender(Scoreboard): ...
