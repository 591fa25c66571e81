from typing_extensions import disjoint_base

from pilot._fast.reassembly import Reassembly

@disjoint_base
@disjoint_base
class Loan: ...

@disjoint_base
class Receiver(Reassembly): ...
