"""What a run shows on the terminal: the stages of its start, its progress, and a summary at the end."""

from launcher.console.progress import Progress as Progress
from launcher.console.summary import left_out_text as left_out_text
from launcher.console.summary import profile_lines as profile_lines
from launcher.console.summary import summary_lines as summary_lines
from launcher.console.summary import target_text as target_text
