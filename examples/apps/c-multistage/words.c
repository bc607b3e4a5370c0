/* Counts words: reads text from standard input, prints the N most frequent words (10 unless told) with their counts. */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LONGEST 63
#define BUCKETS 65536

struct word {
    struct word *next;
    unsigned long count;
    char text[LONGEST + 1];
};

static struct word *table[BUCKETS];
static size_t distinct;

static int add(const char *text)
{
    unsigned hash = 2166136261u;
    for (const char *c = text; *c; c++)
        hash = (hash ^ (unsigned char)*c) * 16777619u;
    struct word **place = &table[hash % BUCKETS];
    for (struct word *word = *place; word; word = word->next)
        if (strcmp(word->text, text) == 0) {
            word->count++;
            return 0;
        }
    struct word *word = malloc(sizeof *word);
    if (!word)
        return -1;
    strcpy(word->text, text);
    word->count = 1;
    word->next = *place;
    *place = word;
    distinct++;
    return 0;
}

static int by_count(const void *left, const void *right)
{
    const struct word *a = *(struct word *const *)left, *b = *(struct word *const *)right;
    if (a->count != b->count)
        return a->count < b->count ? 1 : -1;
    return strcmp(a->text, b->text);
}

int main(int argc, char **argv)
{
    unsigned long most = 10;
    if (argc > 1) {
        char *end;
        errno = 0;
        most = strtoul(argv[1], &end, 10);
        if (argc > 2 || errno || *end || end == argv[1] || argv[1][0] == '-') {
            fprintf(stderr, "usage: words [N] < TEXT\n");
            return 2;
        }
    }
    char text[LONGEST + 1];
    size_t length = 0;
    int c;
    do {
        c = getchar();
        if (c != EOF && isalpha(c)) {
            if (length < LONGEST)
                text[length++] = (char)tolower(c);
        } else if (length > 0) {
            text[length] = '\0';
            length = 0;
            if (add(text)) {
                perror("words");
                return 1;
            }
        }
    } while (c != EOF);
    if (ferror(stdin)) {
        perror("words");
        return 1;
    }
    struct word **sorted = malloc((distinct + 1) * sizeof *sorted);
    if (!sorted) {
        perror("words");
        return 1;
    }
    size_t n = 0;
    for (size_t i = 0; i < BUCKETS; i++)
        for (struct word *word = table[i]; word; word = word->next)
            sorted[n++] = word;
    qsort(sorted, n, sizeof *sorted, by_count);
    for (size_t i = 0; i < n && i < most; i++)
        printf("%7lu %s\n", sorted[i]->count, sorted[i]->text);
    return 0;
}
