"""The embedded servers of a laptop, and the supervisor of its processes.

Owns `<home>/stack.json` and every process named in it. Refuses to touch a server that it did not start, and to start
one for a location that the settings name.
"""

from orchestrator.local_stack.servers import StackError
from orchestrator.local_stack.stack import ServerStatus, ensure_stack, stack_status, stop_stack
from orchestrator.local_stack.supervisor import Supervisor

__all__ = ["ServerStatus", "StackError", "Supervisor", "ensure_stack", "stack_status", "stop_stack"]
