"""Recipe files of mergekit (0.1.5): read, checked, and converted to recipes of ours.

`merge_file` is their format, `methods` the table of merge methods with their parameters, `settings` what a parameter
is set to, `tokens` whose tokens the output has, `chat_formats` its chat templates by name; `yaml_file` and `reading`
read a file, `conversion` makes the recipe, `remarks` say what differs, `text` writes it down. Sources: mergekit's
documentation and its behaviour.
"""

from surgery.mergekit.conversion import convert
from surgery.mergekit.converted import Converted
from surgery.mergekit.reading import is_merge_file

__all__ = ["Converted", "convert", "is_merge_file"]
