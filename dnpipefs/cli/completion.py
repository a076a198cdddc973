"""completion: what makes a shell complete the commands, options and arguments of dnpipefs.

Here is the talk with the shells: bash, zsh and fish hand over the line up to the cursor, and get a line for
each candidate, `TYPE<TAB>VALUE<TAB>HELP`, in the form that the shell puts into the command line. click knows
commands and options, `suggestions` the rest. Why not click's own scripts: they cut `http://…` and
`NAME=VALUE` at bash's word breaks, offer `--format=json` as `json`, and put a space behind a directory.
"""

from __future__ import annotations

import os
import re
from typing import ClassVar, Final

import click
from click.shell_completion import (
    CompletionItem,
    ShellComplete,
    add_completion_class,
    split_arg_string,
)

from dnpipefs.cli.program import COMPLETING, PROGRAM

_LINE: Final = "_DNPIPEFS_LINE"
"""The environment variable with the line up to the cursor."""
_BREAKS: Final = "_DNPIPEFS_BREAKS"
"""Bash's COMP_WORDBREAKS."""
_END: Final = "\0"
"""Marks the cursor: no word has it, and with it there is always a last word."""

_BASH: Final = r"""# dnpipefs completion bash
%(complete_func)s() {
    local kind value help
    COMPREPLY=()
    while IFS=$'\t' read -r kind value help; do
        case $kind in
        plain) COMPREPLY+=("$value ") ;;
        open) COMPREPLY+=("$value") ;;
        dir) compopt +o nospace -o dirnames ;;
        file) compopt +o nospace -o default ;;
        esac
    done < <(_DNPIPEFS_LINE=${COMP_LINE:0:COMP_POINT} _DNPIPEFS_BREAKS=$COMP_WORDBREAKS \
        %(complete_var)s=bash_complete "${1/#\~\//$HOME/}" 2>/dev/null)
}
complete -o nospace -o nosort -F %(complete_func)s %(prog_name)s
"""

_ZSH: Final = r"""#compdef %(prog_name)s
# dnpipefs completion zsh
%(complete_func)s() {
    local kind value help
    local -a plain described open
    while IFS=$'\t' read -r kind value help; do
        case $kind in
        plain) if [[ -n $help ]]; then described+=("${value//:/\\:}:$help"); else plain+=("$value"); fi ;;
        open) open+=("$value") ;;
        dir) compset -P '--*='; _path_files -/ ;;
        file) compset -P '--*='; _path_files -f ;;
        esac
    done < <(_DNPIPEFS_LINE="${(j: :)words[1,CURRENT]}" %(complete_var)s=zsh_complete \
        ${(Q)~words[1]} 2>/dev/null)
    (( $#described )) && _describe -V dnpipefs described
    (( $#plain )) && compadd -V plain -a plain
    (( $#open )) && compadd -V open -S '' -a open
    return 0
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""

_FISH: Final = r"""# dnpipefs completion fish
function %(complete_func)s
    set -l words (commandline -opc)
    for candidate in (_DNPIPEFS_LINE=(commandline -cp | string collect) %(complete_var)s=fish_complete \
            command $words[1] 2>/dev/null)
        set -l parts (string split -m 1 \t -- $candidate)
        switch $parts[1]
            case plain open
                echo $parts[2]
            case dir
                __fish_complete_directories (commandline -ct)
            case file
                __fish_complete_path (commandline -ct)
        end
    end
end
complete --command %(prog_name)s --no-files --keep-order --arguments '(%(complete_func)s)'
"""


class _Shell(ShellComplete):
    """What the shells have in common: a line in, lines out."""

    def get_completion_args(self) -> tuple[list[str], str]:
        _, *words, last = split_arg_string(os.environ[_LINE] + _END)
        return words, last.removesuffix(_END)

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[str]]:
        option, equals, _ = incomplete.partition("=")
        items = super().get_completions(list(args), incomplete)
        if not equals or not option.startswith("--") or "--" in args:
            return items
        return [CompletionItem(f"{option}={item.value}", item.type, item.help) for item in items]

    def format_completion(self, item: CompletionItem[str]) -> str:
        return "\t".join((item.type, item.value, " ".join((item.help or "").split())))


class _Bash(_Shell):
    name: ClassVar[str] = "bash"
    source_template: ClassVar[str] = _BASH

    def format_completion(self, item: CompletionItem[str]) -> str:
        return f"{item.type}\t{_for_bash(item.value, os.environ[_LINE], os.environ[_BREAKS])}"


class _Zsh(_Shell):
    name: ClassVar[str] = "zsh"
    source_template: ClassVar[str] = _ZSH


class _Fish(_Shell):
    name: ClassVar[str] = "fish"
    source_template: ClassVar[str] = _FISH


_SHELLS: Final = (_Bash, _Zsh, _Fish)


def register() -> None:
    """Let click answer shells by these classes instead of its own."""
    for shell in _SHELLS:
        add_completion_class(shell)


@click.command()
@click.argument("shell", type=click.Choice([shell.name for shell in _SHELLS]))
def completion(shell: str) -> None:
    """Print the script that makes a shell complete commands, options, topics, groups and settings.

    \b
    bash   eval "$(dnpipefs completion bash)"      in ~/.bashrc
    zsh    eval "$(dnpipefs completion zsh)"       in ~/.zshrc, behind compinit
    fish   dnpipefs completion fish | source       in ~/.config/fish/config.fish
    """  # noqa: D301 - click's mark is the letter that \b stands for
    (chosen,) = (found for found in _SHELLS if found.name == shell)
    root = click.get_current_context().find_root().command
    click.echo(chosen(root, {}, PROGRAM, COMPLETING).source(), nl=False)


def _for_bash(value: str, line: str, word_breaks: str) -> str:
    """Return what bash is to put in place of its present word, which may be a part of ours.

    A word of bash begins behind any of `word_breaks` that is not quoted, and behind a quote. What comes
    behind an open quote is taken as it is, and bash closes the quote.
    """
    quote, escaped, length, replaced_from = "", False, 0, 0
    for letter in line:
        if escaped:
            escaped, length = False, length + 1
        elif letter == "\\" and quote != "'":
            escaped = True
        elif letter == quote or (not quote and letter in "'\""):
            quote, replaced_from = "" if quote else letter, length
        elif quote:
            length += 1
        elif letter.isspace():
            length = replaced_from = 0
        else:
            length += 1
            replaced_from = length if letter in word_breaks else replaced_from
    rest = value[replaced_from:]
    return rest if quote else re.sub(r"[^\w@%+=:,./-]", r"\\\g<0>", rest)
