#!/bin/sh
# Install packages into the virtual environment $1; the other arguments are those of `pip install`.
# pip resumes a download that breaks off, and gives up when the server's answers stay short. Then the download is started
# anew, twice. Any other error ends at once.
set -eu
venv=$1
shift
log=$venv/pip.log
broken='incomplete-download|IncompleteRead|ReadTimeout|Connection(Reset|Aborted| broken|Error)'

for pause in 15 60 stop; do
    rm -f "$log"
    if "$venv/bin/python" -m pip --log "$log" install "$@"; then
        rm -f "$log"
        exit 0
    fi
    if [ "$pause" = stop ] || ! grep -qE "$broken" "$log"; then
        break
    fi
    echo "A download broke off. It starts again in $pause seconds." >&2
    sleep "$pause"
done
echo "pip could not install everything; $log has the details. Run the command again to go on." >&2
exit 1
