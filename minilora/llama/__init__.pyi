# What this room offers by name; each is imported when it is first asked for.
from .cache import (
    Cache as Cache,
)
from .checkpoint import (
    read_config as read_config,
)
from .config import (
    Config as Config,
)
from .decoder import (
    RMSNorm as RMSNorm,
)
from .generate import (
    filter_logits as filter_logits,
)
from .model import (
    Llama as Llama,
)
from .one_token import (
    Stepper as Stepper,
)
from .rope import (
    rotate as rotate,
)
