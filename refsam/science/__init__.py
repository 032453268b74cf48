"""What runs inside a job: data, models, training, evaluation. Knows the configuration and the records,
nothing else.
"""

import logging
import warnings

# MobileSAM registers models that timm has since got itself, under names of timm's that have moved: fourteen
# lines at every start, about which nobody can do anything here.
warnings.filterwarnings("ignore", module=r"(timm|mobile_sam)\.")
# On processors with bfloat16 bitsandbytes asks at every start for a package with a faster product.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
