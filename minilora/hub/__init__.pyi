# What this room offers by name; each is imported when it is first asked for.
from .adapters import (
    count_parameters as count_parameters,
)
from .adapters import (
    load_adapter as load_adapter,
)
from .adapters import (
    prepare as prepare,
)
from .adapters import (
    recompute as recompute,
)
from .answers import (
    answering as answering,
)
from .bnb_faults import (
    cure as cure,
)
from .bnb_faults import (
    four_bit_layers as four_bit_layers,
)
from .export import (
    save_adapter as save_adapter,
)
from .export import (
    save_model as save_model,
)
from .loading import (
    compute_dtype as compute_dtype,
)
from .loading import (
    libraries as libraries,
)
from .loading import (
    load as load,
)
from .loading import (
    quantization as quantization,
)
from .loading import (
    require_room as require_room,
)
from .loading import (
    tokenizer as tokenizer,
)
