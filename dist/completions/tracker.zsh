#compdef tracker

autoload -U is-at-least

_tracker() {
    typeset -A opt_args
    typeset -a _arguments_options
    local ret=1

    if is-at-least 5.2; then
        _arguments_options=(-s -S -C)
    else
        _arguments_options=(-s -C)
    fi

    local context curcontext="$curcontext" state line
    _arguments "${_arguments_options[@]}" : \
'-h[Print help]' \
'--help[Print help]' \
'-V[Print version]' \
'--version[Print version]' \
":: :_tracker_commands" \
"*::: :->tracker" \
&& ret=0
    case $state in
    (tracker)
        words=($line[1] "${words[@]}")
        (( CURRENT += 1 ))
        curcontext="${curcontext%:*:*}:tracker-command-$line[1]:"
        case $line[1] in
            (run)
_arguments "${_arguments_options[@]}" : \
'--config=[The configuration, in TOML]:FILE:_files' \
'--keep[On SIGTERM, leave everything in place\: the next daemon of the instance goes on, or \`tracker cleanup\` removes it]' \
'-h[Print help (see more with '\''--help'\'')]' \
'--help[Print help (see more with '\''--help'\'')]' \
&& ret=0
;;
(act)
_arguments "${_arguments_options[@]}" : \
'--config=[The configuration, in TOML]:FILE:_files' \
'--socket=[The daemon'\''s socket; that of the configuration if not given]:PATH:_files' \
'--dry-run[Print what would be done now, and change nothing]' \
'(--dry-run)--withdraw[Undo what was done\: remove routes, next-hop groups and next hops that are this program'\''s, and end]' \
'-h[Print help (see more with '\''--help'\'')]' \
'--help[Print help (see more with '\''--help'\'')]' \
&& ret=0
;;
(check)
_arguments "${_arguments_options[@]}" : \
'--here[Also read this host'\''s links, addresses and routes, change nothing, and say what would be done]' \
'-h[Print help (see more with '\''--help'\'')]' \
'--help[Print help (see more with '\''--help'\'')]' \
':file -- The configuration, in TOML:_files' \
&& ret=0
;;
(status)
_arguments "${_arguments_options[@]}" : \
'--color=[When to use colours; \`auto\`\: on a terminal, unless the environment variable NO_COLOR is set]:WHEN:((auto\:"On a terminal, unless \`NO_COLOR\` is set"
always\:"On a pipe too"
never\:"Never"))' \
'--socket=[The daemon'\''s socket]:PATH:_files' \
'--down[Only what is not up\: services and chains that are not, and members and trackers that are not]' \
'--wide[All columns and details, however narrow the terminal is]' \
'--json[Print one JSON object instead of a table]' \
'-h[Print help (see more with '\''--help'\'')]' \
'--help[Print help (see more with '\''--help'\'')]' \
'*::names -- Only these services, and these chains and their services; `*`, `?` and `\[...\]` match as in a shell:_default' \
&& ret=0
;;
(events)
_arguments "${_arguments_options[@]}" : \
'--since=[Only events after number SEQ, the last that was seen. Where numbers began anew since (another RUN, or a SEQ that was not given yet), one line says so, and all that is kept follows]:SEQ|RUN:SEQ:_default' \
'--socket=[The daemon'\''s socket]:PATH:_files' \
'-f[Go on with what happens from now on]' \
'--follow[Go on with what happens from now on]' \
'--json[Print one JSON object a line]' \
'-h[Print help (see more with '\''--help'\'')]' \
'--help[Print help (see more with '\''--help'\'')]' \
'*::names -- Only events of these services, and of these chains and their services; `*`, `?` and `\[...\]` match as in a shell:_default' \
&& ret=0
;;
(watch)
_arguments "${_arguments_options[@]}" : \
'--color=[When to use colours; \`auto\`\: on a terminal, unless the environment variable NO_COLOR is set]:WHEN:((auto\:"On a terminal, unless \`NO_COLOR\` is set"
always\:"On a pipe too"
never\:"Never"))' \
'--socket=[The daemon'\''s socket]:PATH:_files' \
'-h[Print help (see more with '\''--help'\'')]' \
'--help[Print help (see more with '\''--help'\'')]' \
'*::names -- Only these services, and these chains and their services; `*`, `?` and `\[...\]` match as in a shell:_default' \
&& ret=0
;;
(service)
_arguments "${_arguments_options[@]}" : \
'-h[Print help (see more with '\''--help'\'')]' \
'--help[Print help (see more with '\''--help'\'')]' \
":: :_tracker__subcmd__service_commands" \
"*::: :->service" \
&& ret=0

    case $state in
    (service)
        words=($line[1] "${words[@]}")
        (( CURRENT += 1 ))
        curcontext="${curcontext%:*:*}:tracker-service-command-$line[1]:"
        case $line[1] in
            (add)
_arguments "${_arguments_options[@]}" : \
'--endpoint=[The service'\''s own address, the next hop of its probes]:IP:_default' \
'--interface=[The only way out for its probes \[default\: found from the endpoint'\''s own route\]]:IF:_default' \
'*--behind=[Addresses that are reached only through the service; each becomes a tracker]:IP:_default' \
'--policy=[How many of a member'\''s trackers must be up\: one, all, or at least so many \[default\: any\]]:any|all|N:_default' \
'*--returns=[Interfaces on which a reply may arrive \[default\: the outgoing interface\]]:IF:_default' \
'--return-hop=[Which MAC address may bring a reply on the member'\''s own interface\: any, or the endpoint'\''s \[default\: any\]]:any|endpoint:_default' \
'--source=[The source address of probes of its family \[default\: the address that the kernel would take for this next hop\]]:IP:_default' \
'--mark=[The mark that a map of nftables has for the member (\`\[\[action\]\]\` of kind \`nftables\`) \[default\: none\]]:N:_default' \
'--probe=[The kind of probe \[default\: icmp\]]:icmp|udp|tcp:_default' \
'--port=[The destination port of probes that have one \[default\: 862 of \`stamp\`; \`tcp\` and \`udp\` with \`echo\` need it\]]:N:_default' \
'--protocol=[What the datagrams of \`udp\` are\: those of an echo service (RFC 862) or of STAMP (RFC 8762) \[default\: echo\]]:echo|stamp:_default' \
'--interval=[From one probe to the next \[default\: 1s\]]:D:_default' \
'--timeout=[How long a reply may take; may exceed the interval \[default\: 500ms\]]:D:_default' \
'--fall=[So many losses in a row make it down \[default\: 3\]]:N:_default' \
'--rise=[So many replies in a row make it up \[default\: 2\]]:N:_default' \
'--payload=[Bytes after the ICMP or UDP header; none of \`tcp\`; of \`stamp\` 44, or 48 and more with padding \[default\: 32, 44 of \`stamp\`\]]:N:_default' \
'--expect=[What the service must do with the probe\: pass it, or stop it \[default\: reply\]]:reply|silence:_default' \
'--flow=[One ICMP identifier or source port while it passes, or another for each probe \[default\: fixed\]]:fixed|rotate:_default' \
'--dscp=[DSCP of the probes\: which class of service they have on the way \[default\: 0\]]:N|NAME:_default' \
'--refused=[What a refusal by the behind address means\: the probe was stopped, or it passed \[default\: down\]]:down|up:_default' \
'--hold-down=[How long a change must last before it is reported \[default\: 0s\]]:D:_default' \
'--return-ttl=[TTL (hop limit) with which a reply must arrive \[default\: any\]]:N:_default' \
'*--after=[Services that this one lies behind\: while one of them is down, it is not known whether this one passes traffic \[default\: none\]]:NAME:_default' \
'--socket=[The daemon'\''s socket]:PATH:_files' \
'-h[Print help (see more with '\''--help'\'')]' \
'--help[Print help (see more with '\''--help'\'')]' \
':name -- What the service is called; unique among services:_default' \
&& ret=0
;;
(remove)
_arguments "${_arguments_options[@]}" : \
'--socket=[The daemon'\''s socket]:PATH:_files' \
'-h[Print help (see more with '\''--help'\'')]' \
'--help[Print help (see more with '\''--help'\'')]' \
':name -- The service:_default' \
&& ret=0
;;
(set)
_arguments "${_arguments_options[@]}" : \
'--member=[Only this member, by its name, role or endpoint]:M:_default' \
'--state=[What to impose]:STATE:(auto maintenance up down)' \
'--reason=[Why, in one line; shown by status and events]:TEXT:_default' \
'--for=[How long it lasts, such as 2h; until it is changed if not given]:D:_default' \
'--socket=[The daemon'\''s socket]:PATH:_files' \
'-h[Print help (see more with '\''--help'\'')]' \
'--help[Print help (see more with '\''--help'\'')]' \
':name -- The service:_default' \
&& ret=0
;;
(list)
_arguments "${_arguments_options[@]}" : \
'--color=[When to use colours; \`auto\`\: on a terminal, unless the environment variable NO_COLOR is set]:WHEN:((auto\:"On a terminal, unless \`NO_COLOR\` is set"
always\:"On a pipe too"
never\:"Never"))' \
'--socket=[The daemon'\''s socket]:PATH:_files' \
'--json[Print one JSON object instead of a table]' \
'-h[Print help (see more with '\''--help'\'')]' \
'--help[Print help (see more with '\''--help'\'')]' \
'*::names -- Only these services, and those of these chains; `*`, `?` and `\[...\]` match as in a shell:_default' \
&& ret=0
;;
(help)
_arguments "${_arguments_options[@]}" : \
":: :_tracker__subcmd__service__subcmd__help_commands" \
"*::: :->help" \
&& ret=0

    case $state in
    (help)
        words=($line[1] "${words[@]}")
        (( CURRENT += 1 ))
        curcontext="${curcontext%:*:*}:tracker-service-help-command-$line[1]:"
        case $line[1] in
            (add)
_arguments "${_arguments_options[@]}" : \
&& ret=0
;;
(remove)
_arguments "${_arguments_options[@]}" : \
&& ret=0
;;
(set)
_arguments "${_arguments_options[@]}" : \
&& ret=0
;;
(list)
_arguments "${_arguments_options[@]}" : \
&& ret=0
;;
(help)
_arguments "${_arguments_options[@]}" : \
&& ret=0
;;
        esac
    ;;
esac
;;
        esac
    ;;
esac
;;
(history)
_arguments "${_arguments_options[@]}" : \
'--since=[From when on\: how long ago, such as 6h, or a time, such as 2026-01-31T18\:00\:00Z]:D|TIME:_default' \
'--step=[How fine; the finest that reaches back so far if not given]:STEP:(1s 1m 1h)' \
'--svg=[Draw it into this file, which is made, or replaced if it is a regular file]:FILE:_files' \
'--socket=[The daemon'\''s socket]:PATH:_files' \
'(--svg)--json[Print one JSON object]' \
'-h[Print help (see more with '\''--help'\'')]' \
'--help[Print help (see more with '\''--help'\'')]' \
':name -- The service:_default' \
&& ret=0
;;
(log)
_arguments "${_arguments_options[@]}" : \
'--socket=[The daemon'\''s socket]:PATH:_files' \
'-h[Print help (see more with '\''--help'\'')]' \
'--help[Print help (see more with '\''--help'\'')]' \
'::filter -- What to log from now on\: off, error, warn, info, debug, trace, or directives as tracker_user\:\:net=debug,info:_default' \
&& ret=0
;;
(doctor)
_arguments "${_arguments_options[@]}" : \
'--config=[Also look at the interfaces that this configuration names]:FILE:_files' \
'--json[Print one JSON object]' \
'-h[Print help (see more with '\''--help'\'')]' \
'--help[Print help (see more with '\''--help'\'')]' \
&& ret=0
;;
(cleanup)
_arguments "${_arguments_options[@]}" : \
'--instance=[The instance]:NAME:_default' \
'--bpffs=[Where the BPF file system is mounted]:PATH:_files' \
'-h[Print help (see more with '\''--help'\'')]' \
'--help[Print help (see more with '\''--help'\'')]' \
&& ret=0
;;
(help)
_arguments "${_arguments_options[@]}" : \
":: :_tracker__subcmd__help_commands" \
"*::: :->help" \
&& ret=0

    case $state in
    (help)
        words=($line[1] "${words[@]}")
        (( CURRENT += 1 ))
        curcontext="${curcontext%:*:*}:tracker-help-command-$line[1]:"
        case $line[1] in
            (run)
_arguments "${_arguments_options[@]}" : \
&& ret=0
;;
(act)
_arguments "${_arguments_options[@]}" : \
&& ret=0
;;
(check)
_arguments "${_arguments_options[@]}" : \
&& ret=0
;;
(status)
_arguments "${_arguments_options[@]}" : \
&& ret=0
;;
(events)
_arguments "${_arguments_options[@]}" : \
&& ret=0
;;
(watch)
_arguments "${_arguments_options[@]}" : \
&& ret=0
;;
(service)
_arguments "${_arguments_options[@]}" : \
":: :_tracker__subcmd__help__subcmd__service_commands" \
"*::: :->service" \
&& ret=0

    case $state in
    (service)
        words=($line[1] "${words[@]}")
        (( CURRENT += 1 ))
        curcontext="${curcontext%:*:*}:tracker-help-service-command-$line[1]:"
        case $line[1] in
            (add)
_arguments "${_arguments_options[@]}" : \
&& ret=0
;;
(remove)
_arguments "${_arguments_options[@]}" : \
&& ret=0
;;
(set)
_arguments "${_arguments_options[@]}" : \
&& ret=0
;;
(list)
_arguments "${_arguments_options[@]}" : \
&& ret=0
;;
        esac
    ;;
esac
;;
(history)
_arguments "${_arguments_options[@]}" : \
&& ret=0
;;
(log)
_arguments "${_arguments_options[@]}" : \
&& ret=0
;;
(doctor)
_arguments "${_arguments_options[@]}" : \
&& ret=0
;;
(cleanup)
_arguments "${_arguments_options[@]}" : \
&& ret=0
;;
(help)
_arguments "${_arguments_options[@]}" : \
&& ret=0
;;
        esac
    ;;
esac
;;
        esac
    ;;
esac
}

(( $+functions[_tracker_commands] )) ||
_tracker_commands() {
    local commands; commands=(
'run:Run the daemon of this host, in the foreground' \
'act:Carry out the actions of a configuration, in the foreground' \
'check:Validate a configuration without touching the kernel' \
'status:Show what is up and what is not' \
'events:Print the ordered stream of verdict changes' \
'watch:Watch services live on the terminal' \
'service:Add, remove and list services while the daemon runs' \
'history:Show loss, round-trip times and events of a service over time' \
'log:Show or change what the daemon logs' \
'doctor:Say what this kernel and these interfaces can do, and which mode each would get' \
'cleanup:Remove programs and pins that a killed daemon left' \
'help:Print this message or the help of the given subcommand(s)' \
    )
    _describe -t commands 'tracker commands' commands "$@"
}
(( $+functions[_tracker__subcmd__act_commands] )) ||
_tracker__subcmd__act_commands() {
    local commands; commands=()
    _describe -t commands 'tracker act commands' commands "$@"
}
(( $+functions[_tracker__subcmd__check_commands] )) ||
_tracker__subcmd__check_commands() {
    local commands; commands=()
    _describe -t commands 'tracker check commands' commands "$@"
}
(( $+functions[_tracker__subcmd__cleanup_commands] )) ||
_tracker__subcmd__cleanup_commands() {
    local commands; commands=()
    _describe -t commands 'tracker cleanup commands' commands "$@"
}
(( $+functions[_tracker__subcmd__doctor_commands] )) ||
_tracker__subcmd__doctor_commands() {
    local commands; commands=()
    _describe -t commands 'tracker doctor commands' commands "$@"
}
(( $+functions[_tracker__subcmd__events_commands] )) ||
_tracker__subcmd__events_commands() {
    local commands; commands=()
    _describe -t commands 'tracker events commands' commands "$@"
}
(( $+functions[_tracker__subcmd__help_commands] )) ||
_tracker__subcmd__help_commands() {
    local commands; commands=(
'run:Run the daemon of this host, in the foreground' \
'act:Carry out the actions of a configuration, in the foreground' \
'check:Validate a configuration without touching the kernel' \
'status:Show what is up and what is not' \
'events:Print the ordered stream of verdict changes' \
'watch:Watch services live on the terminal' \
'service:Add, remove and list services while the daemon runs' \
'history:Show loss, round-trip times and events of a service over time' \
'log:Show or change what the daemon logs' \
'doctor:Say what this kernel and these interfaces can do, and which mode each would get' \
'cleanup:Remove programs and pins that a killed daemon left' \
'help:Print this message or the help of the given subcommand(s)' \
    )
    _describe -t commands 'tracker help commands' commands "$@"
}
(( $+functions[_tracker__subcmd__help__subcmd__act_commands] )) ||
_tracker__subcmd__help__subcmd__act_commands() {
    local commands; commands=()
    _describe -t commands 'tracker help act commands' commands "$@"
}
(( $+functions[_tracker__subcmd__help__subcmd__check_commands] )) ||
_tracker__subcmd__help__subcmd__check_commands() {
    local commands; commands=()
    _describe -t commands 'tracker help check commands' commands "$@"
}
(( $+functions[_tracker__subcmd__help__subcmd__cleanup_commands] )) ||
_tracker__subcmd__help__subcmd__cleanup_commands() {
    local commands; commands=()
    _describe -t commands 'tracker help cleanup commands' commands "$@"
}
(( $+functions[_tracker__subcmd__help__subcmd__doctor_commands] )) ||
_tracker__subcmd__help__subcmd__doctor_commands() {
    local commands; commands=()
    _describe -t commands 'tracker help doctor commands' commands "$@"
}
(( $+functions[_tracker__subcmd__help__subcmd__events_commands] )) ||
_tracker__subcmd__help__subcmd__events_commands() {
    local commands; commands=()
    _describe -t commands 'tracker help events commands' commands "$@"
}
(( $+functions[_tracker__subcmd__help__subcmd__help_commands] )) ||
_tracker__subcmd__help__subcmd__help_commands() {
    local commands; commands=()
    _describe -t commands 'tracker help help commands' commands "$@"
}
(( $+functions[_tracker__subcmd__help__subcmd__history_commands] )) ||
_tracker__subcmd__help__subcmd__history_commands() {
    local commands; commands=()
    _describe -t commands 'tracker help history commands' commands "$@"
}
(( $+functions[_tracker__subcmd__help__subcmd__log_commands] )) ||
_tracker__subcmd__help__subcmd__log_commands() {
    local commands; commands=()
    _describe -t commands 'tracker help log commands' commands "$@"
}
(( $+functions[_tracker__subcmd__help__subcmd__run_commands] )) ||
_tracker__subcmd__help__subcmd__run_commands() {
    local commands; commands=()
    _describe -t commands 'tracker help run commands' commands "$@"
}
(( $+functions[_tracker__subcmd__help__subcmd__service_commands] )) ||
_tracker__subcmd__help__subcmd__service_commands() {
    local commands; commands=(
'add:Add a service; endpoint and behind are enough' \
'remove:Remove a service that was added' \
'set:Impose an admin state on a service, or on one of its members' \
'list:List the services, and what owns each' \
    )
    _describe -t commands 'tracker help service commands' commands "$@"
}
(( $+functions[_tracker__subcmd__help__subcmd__service__subcmd__add_commands] )) ||
_tracker__subcmd__help__subcmd__service__subcmd__add_commands() {
    local commands; commands=()
    _describe -t commands 'tracker help service add commands' commands "$@"
}
(( $+functions[_tracker__subcmd__help__subcmd__service__subcmd__list_commands] )) ||
_tracker__subcmd__help__subcmd__service__subcmd__list_commands() {
    local commands; commands=()
    _describe -t commands 'tracker help service list commands' commands "$@"
}
(( $+functions[_tracker__subcmd__help__subcmd__service__subcmd__remove_commands] )) ||
_tracker__subcmd__help__subcmd__service__subcmd__remove_commands() {
    local commands; commands=()
    _describe -t commands 'tracker help service remove commands' commands "$@"
}
(( $+functions[_tracker__subcmd__help__subcmd__service__subcmd__set_commands] )) ||
_tracker__subcmd__help__subcmd__service__subcmd__set_commands() {
    local commands; commands=()
    _describe -t commands 'tracker help service set commands' commands "$@"
}
(( $+functions[_tracker__subcmd__help__subcmd__status_commands] )) ||
_tracker__subcmd__help__subcmd__status_commands() {
    local commands; commands=()
    _describe -t commands 'tracker help status commands' commands "$@"
}
(( $+functions[_tracker__subcmd__help__subcmd__watch_commands] )) ||
_tracker__subcmd__help__subcmd__watch_commands() {
    local commands; commands=()
    _describe -t commands 'tracker help watch commands' commands "$@"
}
(( $+functions[_tracker__subcmd__history_commands] )) ||
_tracker__subcmd__history_commands() {
    local commands; commands=()
    _describe -t commands 'tracker history commands' commands "$@"
}
(( $+functions[_tracker__subcmd__log_commands] )) ||
_tracker__subcmd__log_commands() {
    local commands; commands=()
    _describe -t commands 'tracker log commands' commands "$@"
}
(( $+functions[_tracker__subcmd__run_commands] )) ||
_tracker__subcmd__run_commands() {
    local commands; commands=()
    _describe -t commands 'tracker run commands' commands "$@"
}
(( $+functions[_tracker__subcmd__service_commands] )) ||
_tracker__subcmd__service_commands() {
    local commands; commands=(
'add:Add a service; endpoint and behind are enough' \
'remove:Remove a service that was added' \
'set:Impose an admin state on a service, or on one of its members' \
'list:List the services, and what owns each' \
'help:Print this message or the help of the given subcommand(s)' \
    )
    _describe -t commands 'tracker service commands' commands "$@"
}
(( $+functions[_tracker__subcmd__service__subcmd__add_commands] )) ||
_tracker__subcmd__service__subcmd__add_commands() {
    local commands; commands=()
    _describe -t commands 'tracker service add commands' commands "$@"
}
(( $+functions[_tracker__subcmd__service__subcmd__help_commands] )) ||
_tracker__subcmd__service__subcmd__help_commands() {
    local commands; commands=(
'add:Add a service; endpoint and behind are enough' \
'remove:Remove a service that was added' \
'set:Impose an admin state on a service, or on one of its members' \
'list:List the services, and what owns each' \
'help:Print this message or the help of the given subcommand(s)' \
    )
    _describe -t commands 'tracker service help commands' commands "$@"
}
(( $+functions[_tracker__subcmd__service__subcmd__help__subcmd__add_commands] )) ||
_tracker__subcmd__service__subcmd__help__subcmd__add_commands() {
    local commands; commands=()
    _describe -t commands 'tracker service help add commands' commands "$@"
}
(( $+functions[_tracker__subcmd__service__subcmd__help__subcmd__help_commands] )) ||
_tracker__subcmd__service__subcmd__help__subcmd__help_commands() {
    local commands; commands=()
    _describe -t commands 'tracker service help help commands' commands "$@"
}
(( $+functions[_tracker__subcmd__service__subcmd__help__subcmd__list_commands] )) ||
_tracker__subcmd__service__subcmd__help__subcmd__list_commands() {
    local commands; commands=()
    _describe -t commands 'tracker service help list commands' commands "$@"
}
(( $+functions[_tracker__subcmd__service__subcmd__help__subcmd__remove_commands] )) ||
_tracker__subcmd__service__subcmd__help__subcmd__remove_commands() {
    local commands; commands=()
    _describe -t commands 'tracker service help remove commands' commands "$@"
}
(( $+functions[_tracker__subcmd__service__subcmd__help__subcmd__set_commands] )) ||
_tracker__subcmd__service__subcmd__help__subcmd__set_commands() {
    local commands; commands=()
    _describe -t commands 'tracker service help set commands' commands "$@"
}
(( $+functions[_tracker__subcmd__service__subcmd__list_commands] )) ||
_tracker__subcmd__service__subcmd__list_commands() {
    local commands; commands=()
    _describe -t commands 'tracker service list commands' commands "$@"
}
(( $+functions[_tracker__subcmd__service__subcmd__remove_commands] )) ||
_tracker__subcmd__service__subcmd__remove_commands() {
    local commands; commands=()
    _describe -t commands 'tracker service remove commands' commands "$@"
}
(( $+functions[_tracker__subcmd__service__subcmd__set_commands] )) ||
_tracker__subcmd__service__subcmd__set_commands() {
    local commands; commands=()
    _describe -t commands 'tracker service set commands' commands "$@"
}
(( $+functions[_tracker__subcmd__status_commands] )) ||
_tracker__subcmd__status_commands() {
    local commands; commands=()
    _describe -t commands 'tracker status commands' commands "$@"
}
(( $+functions[_tracker__subcmd__watch_commands] )) ||
_tracker__subcmd__watch_commands() {
    local commands; commands=()
    _describe -t commands 'tracker watch commands' commands "$@"
}

if [ "$funcstack[1]" = "_tracker" ]; then
    _tracker "$@"
else
    compdef _tracker tracker
fi
