# What this room offers by name; each is imported when it is first asked for.
from .blockwise import (
    Nested as Nested,
)
from .blockwise import (
    Quantized as Quantized,
)
from .blockwise import (
    quantize as quantize,
)
from .blockwise import (
    scale_plain as scale_plain,
)
from .codebooks import (
    CodeBook as CodeBook,
)
from .codebooks import (
    dynamic_levels as dynamic_levels,
)
from .packing import (
    pack as pack,
)
from .packing import (
    unpack as unpack,
)
