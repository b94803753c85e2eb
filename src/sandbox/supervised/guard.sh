# Cleans up after a private server, however the process that started it ended.
#
# Its standard input is a pipe whose only other end is held by that process: the kernel closes it when the process
# exits, panics or is killed, and we read end of file. Until then each line is the process id of the server that now
# runs in the directory (0: none).
#
# $1  the directory, removed at the end
# $2  the signal that ends the server
trap '' HUP INT QUIT TERM
directory=$1
signal=$2
pid=0
while read -r line; do pid=$line; done

alive() {
    [ "$pid" -gt 0 ] && kill -s 0 "$pid" 2>/dev/null || return 1
    # A zombie has ended; in a container without an init process nobody may ever reap it.
    case $(sed 's/.*) //' "/proc/$pid/stat" 2>/dev/null) in Z*) return 1 ;; esac
}
if alive; then
    kill -s "$signal" "$pid"
    kill -s CONT "$pid" # a paused server hears nothing but this
    tries=0
    while alive && [ "$tries" -lt 500 ]; do
        sleep 0.02
        tries=$((tries + 1))
    done
    alive && kill -s KILL "$pid"
fi

# A Postgres that was killed hard leaves a System V shared memory segment; line 7 of its pid file is "key id".
if [ -f "$directory/data/postmaster.pid" ]; then
    segment=$(sed -n '7s/.* //p' "$directory/data/postmaster.pid")
    [ -n "$segment" ] && ipcrm -m "$segment" 2>/dev/null
fi
rm -rf "$directory"
