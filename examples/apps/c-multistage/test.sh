#!/bin/sh
# Tests of the program $1: what goes in, what must come out.
set -u
failed=0

expect() { # NAME EXPECTED, the actual on standard input
  actual=$(cat)
  if [ "$actual" = "$2" ]; then echo "ok   $1"; else failed=1; printf 'FAIL %s\n  expected: %s\n  actual:   %s\n' "$1" "$2" "$actual"; fi
}

echo "The cat, the dog; THE END." | "$1" 2 | expect "the most frequent first, ties by name" "$(printf '      3 the\n      1 cat')"
printf '' | "$1" | expect "nothing from nothing" ""
echo "a b c d e f g h i j k l" | "$1" | wc -l | tr -d ' ' | expect "ten unless told" "10"
echo "a a b" | "$1" 0 | expect "none when told" ""
head -c 100000 /dev/zero | tr '\0' x | "$1" | wc -c | tr -d ' ' | expect "a word without end is cut" "72"
"$1" nonsense 2>/dev/null </dev/null; echo $? | expect "an argument that is no number is refused" "2"
"$1" -1 2>/dev/null </dev/null; echo $? | expect "a negative one too" "2"
[ $failed = 0 ] && echo "all tests passed"
exit $failed
