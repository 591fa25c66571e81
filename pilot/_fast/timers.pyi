from typing_extensions import disjoint_base

@disjoint_base
class TimerEntry: ...

@disjoint_base
class TimerHeap:
    def __len__(self) -> int: ...
