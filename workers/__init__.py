"""What runs in Ray's processes."""

import gc

# Such a process imports Ray, PyTorch and often vLLM, which make very many objects that last. To
# look for garbage among them took a fifth of the time in which an engine starts.
gc.set_threshold(100_000)
