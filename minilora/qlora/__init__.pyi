# What this room offers by name; each is imported when it is first asked for.
from .base import (
    load_base as load_base,
)
from .base import (
    quantize_base as quantize_base,
)
from .base import (
    resolve as resolve,
)
from .checkpoint import (
    load_quantized as load_quantized,
)
from .checkpoint import (
    save_quantized as save_quantized,
)
from .four_bit import (
    QLinear as QLinear,
)
from .four_bit import (
    lora_forward_plain as lora_forward_plain,
)
from .four_bit import (
    quantize_model as quantize_model,
)
from .int8 import (
    Int8Linear as Int8Linear,
)
from .int8 import (
    quantize_model_int8 as quantize_model_int8,
)
