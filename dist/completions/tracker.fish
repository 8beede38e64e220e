# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_tracker_global_optspecs
    string join \n h/help V/version
end

function __fish_tracker_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_tracker_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_tracker_using_subcommand
    set -l cmd (__fish_tracker_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c tracker -n "__fish_tracker_needs_command" -s h -l help -d 'Print help'
complete -c tracker -n "__fish_tracker_needs_command" -s V -l version -d 'Print version'
complete -c tracker -n "__fish_tracker_needs_command" -f -a "run" -d 'Run the daemon of this host, in the foreground'
complete -c tracker -n "__fish_tracker_needs_command" -f -a "act" -d 'Carry out the actions of a configuration, in the foreground'
complete -c tracker -n "__fish_tracker_needs_command" -f -a "check" -d 'Validate a configuration without touching the kernel'
complete -c tracker -n "__fish_tracker_needs_command" -f -a "status" -d 'Show what is up and what is not'
complete -c tracker -n "__fish_tracker_needs_command" -f -a "events" -d 'Print the ordered stream of verdict changes'
complete -c tracker -n "__fish_tracker_needs_command" -f -a "watch" -d 'Watch services live on the terminal'
complete -c tracker -n "__fish_tracker_needs_command" -f -a "service" -d 'Add, remove and list services while the daemon runs'
complete -c tracker -n "__fish_tracker_needs_command" -f -a "history" -d 'Show loss, round-trip times and events of a service over time'
complete -c tracker -n "__fish_tracker_needs_command" -f -a "log" -d 'Show or change what the daemon logs'
complete -c tracker -n "__fish_tracker_needs_command" -f -a "doctor" -d 'Say what this kernel and these interfaces can do, and which mode each would get'
complete -c tracker -n "__fish_tracker_needs_command" -f -a "cleanup" -d 'Remove programs and pins that a killed daemon left'
complete -c tracker -n "__fish_tracker_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c tracker -n "__fish_tracker_using_subcommand run" -l config -d 'The configuration, in TOML' -r -F
complete -c tracker -n "__fish_tracker_using_subcommand run" -l keep -d 'On SIGTERM, leave everything in place: the next daemon of the instance goes on, or `tracker cleanup` removes it'
complete -c tracker -n "__fish_tracker_using_subcommand run" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tracker -n "__fish_tracker_using_subcommand act" -l config -d 'The configuration, in TOML' -r -F
complete -c tracker -n "__fish_tracker_using_subcommand act" -l socket -d 'The daemon\'s socket; that of the configuration if not given' -r -F
complete -c tracker -n "__fish_tracker_using_subcommand act" -l dry-run -d 'Print what would be done now, and change nothing'
complete -c tracker -n "__fish_tracker_using_subcommand act" -l withdraw -d 'Undo what was done: remove routes, next-hop groups and next hops that are this program\'s, and end'
complete -c tracker -n "__fish_tracker_using_subcommand act" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tracker -n "__fish_tracker_using_subcommand check" -l here -d 'Also read this host\'s links, addresses and routes, change nothing, and say what would be done'
complete -c tracker -n "__fish_tracker_using_subcommand check" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tracker -n "__fish_tracker_using_subcommand status" -l color -d 'When to use colours; `auto`: on a terminal, unless the environment variable NO_COLOR is set' -r -f -a "auto\t'On a terminal, unless `NO_COLOR` is set'
always\t'On a pipe too'
never\t'Never'"
complete -c tracker -n "__fish_tracker_using_subcommand status" -l socket -d 'The daemon\'s socket' -r -F
complete -c tracker -n "__fish_tracker_using_subcommand status" -l down -d 'Only what is not up: services and chains that are not, and members and trackers that are not'
complete -c tracker -n "__fish_tracker_using_subcommand status" -l wide -d 'All columns and details, however narrow the terminal is'
complete -c tracker -n "__fish_tracker_using_subcommand status" -l json -d 'Print one JSON object instead of a table'
complete -c tracker -n "__fish_tracker_using_subcommand status" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tracker -n "__fish_tracker_using_subcommand events" -l since -d 'Only events after number SEQ, the last that was seen. Where numbers began anew since (another RUN, or a SEQ that was not given yet), one line says so, and all that is kept follows' -r
complete -c tracker -n "__fish_tracker_using_subcommand events" -l socket -d 'The daemon\'s socket' -r -F
complete -c tracker -n "__fish_tracker_using_subcommand events" -s f -l follow -d 'Go on with what happens from now on'
complete -c tracker -n "__fish_tracker_using_subcommand events" -l json -d 'Print one JSON object a line'
complete -c tracker -n "__fish_tracker_using_subcommand events" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tracker -n "__fish_tracker_using_subcommand watch" -l color -d 'When to use colours; `auto`: on a terminal, unless the environment variable NO_COLOR is set' -r -f -a "auto\t'On a terminal, unless `NO_COLOR` is set'
always\t'On a pipe too'
never\t'Never'"
complete -c tracker -n "__fish_tracker_using_subcommand watch" -l socket -d 'The daemon\'s socket' -r -F
complete -c tracker -n "__fish_tracker_using_subcommand watch" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tracker -n "__fish_tracker_using_subcommand service; and not __fish_seen_subcommand_from add remove set list help" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tracker -n "__fish_tracker_using_subcommand service; and not __fish_seen_subcommand_from add remove set list help" -f -a "add" -d 'Add a service; endpoint and behind are enough'
complete -c tracker -n "__fish_tracker_using_subcommand service; and not __fish_seen_subcommand_from add remove set list help" -f -a "remove" -d 'Remove a service that was added'
complete -c tracker -n "__fish_tracker_using_subcommand service; and not __fish_seen_subcommand_from add remove set list help" -f -a "set" -d 'Impose an admin state on a service, or on one of its members'
complete -c tracker -n "__fish_tracker_using_subcommand service; and not __fish_seen_subcommand_from add remove set list help" -f -a "list" -d 'List the services, and what owns each'
complete -c tracker -n "__fish_tracker_using_subcommand service; and not __fish_seen_subcommand_from add remove set list help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from add" -l endpoint -d 'The service\'s own address, the next hop of its probes' -r
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from add" -l interface -d 'The only way out for its probes [default: found from the endpoint\'s own route]' -r
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from add" -l behind -d 'Addresses that are reached only through the service; each becomes a tracker' -r
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from add" -l policy -d 'How many of a member\'s trackers must be up: one, all, or at least so many [default: any]' -r
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from add" -l returns -d 'Interfaces on which a reply may arrive [default: the outgoing interface]' -r
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from add" -l return-hop -d 'Which MAC address may bring a reply on the member\'s own interface: any, or the endpoint\'s [default: any]' -r
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from add" -l source -d 'The source address of probes of its family [default: the address that the kernel would take for this next hop]' -r
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from add" -l mark -d 'The mark that a map of nftables has for the member (`[[action]]` of kind `nftables`) [default: none]' -r
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from add" -l probe -d 'The kind of probe [default: icmp]' -r
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from add" -l port -d 'The destination port of probes that have one [default: 862 of `stamp`; `tcp` and `udp` with `echo` need it]' -r
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from add" -l protocol -d 'What the datagrams of `udp` are: those of an echo service (RFC 862) or of STAMP (RFC 8762) [default: echo]' -r
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from add" -l interval -d 'From one probe to the next [default: 1s]' -r
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from add" -l timeout -d 'How long a reply may take; may exceed the interval [default: 500ms]' -r
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from add" -l fall -d 'So many losses in a row make it down [default: 3]' -r
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from add" -l rise -d 'So many replies in a row make it up [default: 2]' -r
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from add" -l payload -d 'Bytes after the ICMP or UDP header; none of `tcp`; of `stamp` 44, or 48 and more with padding [default: 32, 44 of `stamp`]' -r
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from add" -l expect -d 'What the service must do with the probe: pass it, or stop it [default: reply]' -r
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from add" -l flow -d 'One ICMP identifier or source port while it passes, or another for each probe [default: fixed]' -r
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from add" -l dscp -d 'DSCP of the probes: which class of service they have on the way [default: 0]' -r
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from add" -l refused -d 'What a refusal by the behind address means: the probe was stopped, or it passed [default: down]' -r
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from add" -l hold-down -d 'How long a change must last before it is reported [default: 0s]' -r
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from add" -l return-ttl -d 'TTL (hop limit) with which a reply must arrive [default: any]' -r
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from add" -l after -d 'Services that this one lies behind: while one of them is down, it is not known whether this one passes traffic [default: none]' -r
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from add" -l socket -d 'The daemon\'s socket' -r -F
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from add" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from remove" -l socket -d 'The daemon\'s socket' -r -F
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from remove" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from set" -l member -d 'Only this member, by its name, role or endpoint' -r
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from set" -l state -d 'What to impose' -r -f -a "auto\t''
maintenance\t''
up\t''
down\t''"
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from set" -l reason -d 'Why, in one line; shown by status and events' -r
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from set" -l for -d 'How long it lasts, such as 2h; until it is changed if not given' -r
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from set" -l socket -d 'The daemon\'s socket' -r -F
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from set" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from list" -l color -d 'When to use colours; `auto`: on a terminal, unless the environment variable NO_COLOR is set' -r -f -a "auto\t'On a terminal, unless `NO_COLOR` is set'
always\t'On a pipe too'
never\t'Never'"
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from list" -l socket -d 'The daemon\'s socket' -r -F
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from list" -l json -d 'Print one JSON object instead of a table'
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from help" -f -a "add" -d 'Add a service; endpoint and behind are enough'
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from help" -f -a "remove" -d 'Remove a service that was added'
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from help" -f -a "set" -d 'Impose an admin state on a service, or on one of its members'
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from help" -f -a "list" -d 'List the services, and what owns each'
complete -c tracker -n "__fish_tracker_using_subcommand service; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c tracker -n "__fish_tracker_using_subcommand history" -l since -d 'From when on: how long ago, such as 6h, or a time, such as 2026-01-31T18:00:00Z' -r
complete -c tracker -n "__fish_tracker_using_subcommand history" -l step -d 'How fine; the finest that reaches back so far if not given' -r -f -a "1s\t''
1m\t''
1h\t''"
complete -c tracker -n "__fish_tracker_using_subcommand history" -l svg -d 'Draw it into this file, which is made, or replaced if it is a regular file' -r -F
complete -c tracker -n "__fish_tracker_using_subcommand history" -l socket -d 'The daemon\'s socket' -r -F
complete -c tracker -n "__fish_tracker_using_subcommand history" -l json -d 'Print one JSON object'
complete -c tracker -n "__fish_tracker_using_subcommand history" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tracker -n "__fish_tracker_using_subcommand log" -l socket -d 'The daemon\'s socket' -r -F
complete -c tracker -n "__fish_tracker_using_subcommand log" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tracker -n "__fish_tracker_using_subcommand doctor" -l config -d 'Also look at the interfaces that this configuration names' -r -F
complete -c tracker -n "__fish_tracker_using_subcommand doctor" -l json -d 'Print one JSON object'
complete -c tracker -n "__fish_tracker_using_subcommand doctor" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tracker -n "__fish_tracker_using_subcommand cleanup" -l instance -d 'The instance' -r
complete -c tracker -n "__fish_tracker_using_subcommand cleanup" -l bpffs -d 'Where the BPF file system is mounted' -r -F
complete -c tracker -n "__fish_tracker_using_subcommand cleanup" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c tracker -n "__fish_tracker_using_subcommand help; and not __fish_seen_subcommand_from run act check status events watch service history log doctor cleanup help" -f -a "run" -d 'Run the daemon of this host, in the foreground'
complete -c tracker -n "__fish_tracker_using_subcommand help; and not __fish_seen_subcommand_from run act check status events watch service history log doctor cleanup help" -f -a "act" -d 'Carry out the actions of a configuration, in the foreground'
complete -c tracker -n "__fish_tracker_using_subcommand help; and not __fish_seen_subcommand_from run act check status events watch service history log doctor cleanup help" -f -a "check" -d 'Validate a configuration without touching the kernel'
complete -c tracker -n "__fish_tracker_using_subcommand help; and not __fish_seen_subcommand_from run act check status events watch service history log doctor cleanup help" -f -a "status" -d 'Show what is up and what is not'
complete -c tracker -n "__fish_tracker_using_subcommand help; and not __fish_seen_subcommand_from run act check status events watch service history log doctor cleanup help" -f -a "events" -d 'Print the ordered stream of verdict changes'
complete -c tracker -n "__fish_tracker_using_subcommand help; and not __fish_seen_subcommand_from run act check status events watch service history log doctor cleanup help" -f -a "watch" -d 'Watch services live on the terminal'
complete -c tracker -n "__fish_tracker_using_subcommand help; and not __fish_seen_subcommand_from run act check status events watch service history log doctor cleanup help" -f -a "service" -d 'Add, remove and list services while the daemon runs'
complete -c tracker -n "__fish_tracker_using_subcommand help; and not __fish_seen_subcommand_from run act check status events watch service history log doctor cleanup help" -f -a "history" -d 'Show loss, round-trip times and events of a service over time'
complete -c tracker -n "__fish_tracker_using_subcommand help; and not __fish_seen_subcommand_from run act check status events watch service history log doctor cleanup help" -f -a "log" -d 'Show or change what the daemon logs'
complete -c tracker -n "__fish_tracker_using_subcommand help; and not __fish_seen_subcommand_from run act check status events watch service history log doctor cleanup help" -f -a "doctor" -d 'Say what this kernel and these interfaces can do, and which mode each would get'
complete -c tracker -n "__fish_tracker_using_subcommand help; and not __fish_seen_subcommand_from run act check status events watch service history log doctor cleanup help" -f -a "cleanup" -d 'Remove programs and pins that a killed daemon left'
complete -c tracker -n "__fish_tracker_using_subcommand help; and not __fish_seen_subcommand_from run act check status events watch service history log doctor cleanup help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c tracker -n "__fish_tracker_using_subcommand help; and __fish_seen_subcommand_from service" -f -a "add" -d 'Add a service; endpoint and behind are enough'
complete -c tracker -n "__fish_tracker_using_subcommand help; and __fish_seen_subcommand_from service" -f -a "remove" -d 'Remove a service that was added'
complete -c tracker -n "__fish_tracker_using_subcommand help; and __fish_seen_subcommand_from service" -f -a "set" -d 'Impose an admin state on a service, or on one of its members'
complete -c tracker -n "__fish_tracker_using_subcommand help; and __fish_seen_subcommand_from service" -f -a "list" -d 'List the services, and what owns each'
