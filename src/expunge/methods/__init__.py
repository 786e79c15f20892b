"""Lists every method by name. Each family's package has one tuple of classes, from which the lists and unions here are built."""

from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from expunge.errors import ExpungeError, nearest
from expunge.methods.base import (
    ComposedMethod as ComposedMethod,
)
from expunge.methods.base import (
    GuardingMethod as GuardingMethod,
)
from expunge.methods.base import (
    InPlaceEditing as InPlaceEditing,
)
from expunge.methods.base import (
    Spec as Spec,
)
from expunge.methods.composed import *  # noqa: F403 - the families' tuples and classes are public names of this package
from expunge.methods.composed import COMPOSED
from expunge.methods.editing import *  # noqa: F403
from expunge.methods.editing import ADAPTER_MERGING, IN_PLACE, MERGING
from expunge.methods.guarding import *  # noqa: F403
from expunge.methods.guarding import GUARDING
from expunge.methods.training import *  # noqa: F403
from expunge.methods.training import TRAINING
from expunge.methods.training.base import (
    Batch as Batch,
)
from expunge.methods.training.base import (
    Loss as Loss,
)
from expunge.methods.training.base import (
    RowSet as RowSet,
)
from expunge.methods.training.base import (
    Term as Term,
)
from expunge.methods.training.base import (
    TrainingMethod as TrainingMethod,
)

UNLEARNING: dict[str, type[Spec]] = {cls.method_name(): cls for cls in (*TRAINING, *IN_PLACE, *GUARDING, *COMPOSED)}
"""Name -> class, for the methods of `expunge unlearn`."""

METHODS: dict[str, type[Spec]] = UNLEARNING | {cls.method_name(): cls for cls in (*MERGING, *ADAPTER_MERGING)}
"""Name -> class, for all methods, including those of `expunge merge`."""

if TYPE_CHECKING:
    Method = TrainingMethod | InPlaceEditing | GuardingMethod | ComposedMethod
else:
    Method = Annotated[Union[tuple(UNLEARNING.values())], Field(discriminator="name")]
    """Any method of `expunge unlearn`; in YAML and JSON the field `name` says which."""


def method_class(name: str) -> type[Spec]:
    """Returns the class of a method by its name. Raises ExpungeError, with the nearest known name, for an unknown one."""
    if name not in METHODS:
        raise ExpungeError(f"there is no method '{name}'{nearest(name, METHODS)}; `expunge methods` lists them all")
    return METHODS[name]
