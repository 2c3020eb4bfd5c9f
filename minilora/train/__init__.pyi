# What this room offers by name; each is imported when it is first asked for.
from .batches import (
    Batches as Batches,
)
from .checks import (
    check as check,
)
from .config import (
    TrainConfig as TrainConfig,
)
from .kl_divergence import (
    kl as kl,
)
from .kl_divergence import (
    log_probabilities as log_probabilities,
)
from .kl_divergence import (
    own_text as own_text,
)
from .loop import (
    History as History,
)
from .loop import (
    fit as fit,
)
from .loop import (
    learning_rate as learning_rate,
)
from .loop import (
    parameter_groups as parameter_groups,
)
from .loop import (
    smaller_batch as smaller_batch,
)
from .loop import (
    step_gradients as step_gradients,
)
from .loss import (
    evaluate_loss as evaluate_loss,
)
from .loss import (
    loss_sum as loss_sum,
)
from .loss import (
    tensors as tensors,
)
from .row_checks import (
    CheckFailed as CheckFailed,
)
from .row_checks import (
    check_rows as check_rows,
)
from .run_folder import (
    RunFolder as RunFolder,
)
from .scoring import (
    exact_match as exact_match,
)
