"""What the compiler decided and what it costs, as objects, as text and as plain data."""

from tinyc.reporting.collect import collect
from tinyc.reporting.comparison import Comparison, KernelTimes, compare
from tinyc.reporting.explanation import Explanation, explain, native_runs, refusals
from tinyc.reporting.profiling import Profile, profile
from tinyc.reporting.recording import Recording, record
from tinyc.reporting.text import describe_kernel, origins_text, quantity, table

__all__ = [
    "Comparison",
    "Explanation",
    "KernelTimes",
    "Profile",
    "Recording",
    "collect",
    "compare",
    "describe_kernel",
    "explain",
    "native_runs",
    "origins_text",
    "profile",
    "quantity",
    "record",
    "refusals",
    "table",
]
