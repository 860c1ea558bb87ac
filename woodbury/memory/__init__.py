"""The memory budget, and where rows lie that it has no room for."""

from woodbury.memory.budget import available_bytes as available_bytes
from woodbury.memory.budget import budget_bytes as budget_bytes
from woodbury.memory.budget import bytes_in_words as bytes_in_words
from woodbury.memory.budget import check_holds as check_holds
from woodbury.memory.budget import limits_within as limits_within
from woodbury.memory.budget import parse_bytes as parse_bytes
from woodbury.memory.budget import row_bytes as row_bytes
from woodbury.memory.row_store import check_room as check_room
from woodbury.memory.row_store import stored_rows as stored_rows
