from typing_extensions import disjoint_base

@disjoint_base
class Budget:
    @property
    def limit(self) -> int: ...
    @property
    def used(self) -> int: ...

@disjoint_base
class Share:
    @property
    def used(self) -> int: ...
