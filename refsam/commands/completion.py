"""`refsam completion`: what makes a shell complete `refsam` and `python -m refsam.sweep`.

The shell's side; refsam/completion.py answers. argcomplete's code asks for it. argcomplete completes
`python -m` only together with every other command of the shell, and not in fish, so that is here.
"""

import argparse

from refsam.commands.options import COMPLETED, Commands

MODULE = "refsam.sweep"
# In the place of a script whose completion argcomplete's code asks for: the Python that was typed.
ASK = "_refsam_sweep"

BASH = f"""
{ASK}() {{
    "${{COMP_WORDS[0]/#\\~/$HOME}}" -m {MODULE}
}}
# What bash-completion has for python goes on.
{{ _comp_load python || _completion_loader python; }} >/dev/null 2>&1
_refsam_python_before=$(complete -p python 2>/dev/null | sed -n 's/.* -F \\([^ ]*\\) .*/\\1/p')
_refsam_python() {{
    if [[ ${{COMP_WORDS[1]-}} == -m && ${{COMP_WORDS[2]-}} == {MODULE} ]] && ((COMP_CWORD > 2)); then
        _python_argcomplete_{ASK} "$@"
    elif [[ -n $_refsam_python_before && $_refsam_python_before != _refsam_python ]]; then
        "$_refsam_python_before" "$@"
    fi
}}
complete -o default -o bashdefault -F _refsam_python python python3
"""
ZSH = f"""
{ASK}() {{
    ${{~words[1]}} -m {MODULE}
}}
_refsam_python_before=${{_comps[python]:-_default}}
_refsam_python() {{
    if [[ ${{words[2]}} == -m && ${{words[3]}} == {MODULE} ]] && ((CURRENT > 3)); then
        _python_argcomplete_{ASK} "$@"
    elif [[ $_refsam_python_before != _refsam_python ]]; then
        "$_refsam_python_before" "$@"
    fi
}}
compdef _refsam_python python python3
"""
FISH = f"""
function {ASK}
    set -l words (commandline -opc)
    $words[1] -m {MODULE}
end
function __refsam_is_sweep
    set -l words (commandline -opc)
    test (count $words) -ge 3 -a "$words[2] $words[3]" = "-m {MODULE}"
end
for python in python python3
    complete --command $python --condition __refsam_is_sweep -f -a '(__fish_{MODULE}_complete)'
end
"""
OWN = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "completion",
        help="print what makes a shell complete refsam and python -m refsam.sweep",
        description="Print what makes a shell complete the commands: sweeps, runs, and overrides as in\n"
        "resource=gtx1080,v<TAB>. In bash and zsh the example is a line for ~/.bashrc or ~/.zshrc; in\n"
        "fish it is refsam completion fish | source, for ~/.config/fish/config.fish.",
        epilog='Example:\n  eval "$(refsam completion bash)"',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=tuple(OWN), help="the shell that is to complete")
    parser.set_defaults(run=_completion)


def _completion(options: argparse.Namespace) -> int:
    print(shell_code(options.shell))
    return COMPLETED


def shell_code(shell: str) -> str:
    """What a shell has to execute to complete the commands."""
    from argcomplete.shell_integration import shellcode

    plain = shellcode(["refsam"], use_defaults=False, shell=shell)
    # Registered for a command that nobody types; refsam's own lines ask for it where the module is typed.
    module = shellcode([MODULE], use_defaults=False, shell=shell, argcomplete_script=ASK)
    begin = "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }\n" if shell == "zsh" else ""
    return begin + plain + module + OWN[shell]
